"""Trainers that make weak labels and fine-tuned strong models, and tell what came of them; they stand on `w2s_tasks`."""
