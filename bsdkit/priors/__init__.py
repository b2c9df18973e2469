"""Class priors and summaries from metadata: language models, and text encoders without any."""
