"""The page: sections as HTML, charts as figures that plotly.js draws, a style and a script, all in one file."""
