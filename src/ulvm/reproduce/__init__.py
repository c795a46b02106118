"""The paper's experiments: what is run, what its result files say, and what papers print."""
