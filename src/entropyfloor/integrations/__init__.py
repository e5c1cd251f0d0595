"""Our loss and floor in other frameworks: a file each, which that framework imports, not we."""
