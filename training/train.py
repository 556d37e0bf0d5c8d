"""`python -m training.train`: see training.learning.trainer."""

from training.learning.trainer import main

if __name__ == "__main__":
    main()
