"""Files for GitHub: workflows name targets of the Makefile, and versions that setup.py and constraints.txt have."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text()) for file in ROOT.glob(".github/workflows/*.yml")}
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def steps():
    """(workflow, job, step) of every step."""
    for name, workflow in WORKFLOWS.items():
        for job in workflow["jobs"].values():
            yield from ((name, job, step) for step in job["steps"])


def versions_of(job, step):
    """The versions of Python that a step installs: the matrix's, or its own."""
    version = step["with"]["python-version"]
    return job["strategy"]["matrix"]["python"] if "matrix" in version else [version]


def test_there_is_a_workflow_for_changes_slow_tests_pages_and_releases():
    assert set(WORKFLOWS) == {"ci", "slow", "docs", "release"}


def test_the_targets_of_make_that_workflows_run_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [run for _, _, step in steps() for run in re.findall(r"^make (.*)", step.get("run", ""), re.MULTILINE)]
    run = {word for command in commands for word in command.split() if "=" not in word and word[0] != "-"}
    assert run == {"check", "slow", "docs"} and run <= targets


def test_workflows_run_versions_of_python_that_are_supported_and_constrained():
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "setup.py").read_text())
    constrained = set(re.findall(r"python_version == '([\d.]+)'", CONSTRAINTS))
    installed = [versions_of(job, step) for _, job, step in steps() if "setup-python" in step.get("uses", "")]
    assert len(installed) == 5
    for versions in installed:
        assert set(versions) <= set(classified) & constrained
    assert {*WORKFLOWS["ci"]["jobs"]["check"]["strategy"]["matrix"]["python"]} == constrained


def test_actions_have_major_versions_and_only_two_jobs_may_write():
    used = {step["uses"] for _, _, step in steps() if "uses" in step}
    assert all(re.fullmatch(r"[\w/-]+@(?:v\d+|release/v1)", name) for name in used)
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())
    writing = {
        name for workflow in WORKFLOWS.values() for name, job in workflow["jobs"].items() if "permissions" in job
    }
    assert writing == {"deploy", "publish"}


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_hooks_before_a_commit_have_the_version_of_ruff_that_ci_has(python):
    ruff, own = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={ruff['rev'].removeprefix('v')} ; python_version == '{python}'" in CONSTRAINTS
    assert (ROOT / own["hooks"][0]["entry"].removeprefix("python ")).is_file()


def test_issues_ask_for_the_output_of_the_doctor():
    body = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())["body"]
    assert any("python -m detailclip_jax.doctor" in field["attributes"]["label"] for field in body)


def test_the_launch_files_use_the_image_of_the_dockerfile():
    dockerfile = (ROOT / "launch/Dockerfile").read_text()
    (tag,) = set(re.findall(r"--tag (\S+) ", dockerfile)) - {"REGISTRY/detailclip_jax:cpu"}
    assert f"image: {tag}\n" in (ROOT / "launch/gke-jobset.yaml").read_text()
    assert "launch/Dockerfile" in (ROOT / "launch/slurm.sbatch").read_text()
    default = re.search(r"^ARG PYTHON=(.+)$", dockerfile, re.MULTILINE)[1]
    assert f"python_version == '{default}'" in CONSTRAINTS


def test_a_release_s_readme_has_links_that_work_without_its_files():
    (build,) = [step for _, _, step in steps() if step.get("run") == "python -m build"]
    assert build["env"] == {"README_REPOSITORY": "${{ github.repository }}"}
    command, environment = [sys.executable, "setup.py", "--quiet", "--long-description"], {"README_REPOSITORY": "a/b"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    links = re.findall(r"\]\(([^)]+)\)", done.stdout)
    assert len(links) > 20 and all(link.startswith(("https://", "#")) for link in links)
