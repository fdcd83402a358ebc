"""The names of files that this room writes into a folder or looks for there, for those who only need to know them."""

CARD = "README.md"
EVIDENCE = "report.json"  # what the page is made of
ADAPTER, MODULES = "adapter_config.json", "modules.json"  # of peft, and of sentence-transformers
EXPORT = "irm_fast_export.json"  # of what an export was made, without folders of the machine
PAGE, CHARTS = "report.html", "-charts"  # the end of the name of the folder of PNG files
