"""One run: its folder, results, fitting, scoring, prediction and verification."""
