# Sourced by the other scripts of this folder: sets `python` to an interpreter that has the package and its dependencies.
# The variable PYTHON selects another one.

has_package() {
  "$1" -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("detailclip_jax", "jax", "grain"))))' \
    2>/dev/null
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for python in ${PYTHON:+"$PYTHON"} python "$here/.venv/bin/python" ""; do
  if [[ -n ${PYTHON:-} ]] || has_package "$python"; then
    break
  fi
done
if [[ -z $python ]]; then
  echo "error: neither python nor $here/.venv/bin/python has detailclip_jax and jax; make the environment with" >&2
  echo "make demo, or name another: PYTHON=/path/to/python $0 ..." >&2
  exit 2
fi
