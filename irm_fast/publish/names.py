"""The names of what this room writes into the folder of a model, for those who only need to know them."""

CARD = "README.md"
EVIDENCE = "report.json"  # what the page is made of
PAGE, CHARTS = "report.html", "-charts"  # the end of the name of the folder of PNG files
