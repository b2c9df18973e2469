"""What answers for a clip: servers, local models, encoders, audio language models."""
