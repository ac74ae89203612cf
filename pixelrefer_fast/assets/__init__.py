"""Files that ship with the package: the two small recorded checkpoints and a photograph (see NOTICE.md)."""
