"""Workers: a frozen language model that scores candidate memories; imports neither ray, mlflow nor nevergrad."""
