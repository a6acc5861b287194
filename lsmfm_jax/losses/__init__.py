"""Pure objectives: losses of pretraining and of each finetuning task."""
