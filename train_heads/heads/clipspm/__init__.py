"""CLIP-SPM (arXiv 2512.19036): the head, its modules, its settings and presets."""
