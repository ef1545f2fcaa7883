"""Write the scripts that test_scripts.py compares with: python -m tests.launch.write_expected"""

from tests.launch.jobs import EXPECTED, scripts

if __name__ == "__main__":
    for name, text in scripts().items():
        (EXPECTED / name).write_text(text)
