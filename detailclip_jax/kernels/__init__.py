"""Functions with the values of the printed formulas, in less memory or time; tests compare with the plain formulas."""
