"""Plans whose kernel runs on copies of the images, or on views; one class for each way."""
