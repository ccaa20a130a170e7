"""Values of the printed formulas in less memory or time; the test of each is the plain formula."""
