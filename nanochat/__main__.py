"""python -m nanochat   (also under torchrun)"""

import sys

from nanochat.cli.main import main

sys.exit(main())
