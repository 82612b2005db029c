"""Charts as inline SVG, from numpy columns: scales (`scales`), what is drawn on them (`chart`), and numbers as text."""
