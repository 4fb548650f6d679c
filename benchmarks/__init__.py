"""How fast meshlab is, as ratios within one run. Run by people and CI, never as tests: see README.md here."""
