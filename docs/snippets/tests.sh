.venv/bin/pytest -n auto
