"""Turn every text of a corpus into a vector, with the encoder of any checkpoint.

ray job submit -- python jobs/embed_corpus.py --input corpus/ --output vectors/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="feature-extraction"))
