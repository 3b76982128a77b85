"""The verbs of `diffgan pairs`: what a pair set will take, what it holds, whether it is intact."""
