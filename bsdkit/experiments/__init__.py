"""Several runs or settings compared: ablation, tuning, leaderboard, label quality."""
