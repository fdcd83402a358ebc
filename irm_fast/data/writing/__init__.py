"""Files that are whole or absent, with manifests, and folders that one run has to itself."""
