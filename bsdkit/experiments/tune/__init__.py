"""Searches the settings of one member, and says what the search is worth on other clips.

A *study* proposes settings and judges each by the pooled hF_strict of out-of-fold predictions.
The study named ``all`` uses every fold; its best setting is the answer, its best score is
in-sample. For each fold k a study of its own never meets k: fold j is judged by models that
were trained without j and without k, so that neither the clips nor the labels of k have a say
in what is chosen for them. What it chooses is trained as the member is, without k, and predicts
k's clips; the score of these predictions, pooled over k, is the nested one (Varma and Simon,
"Bias in error estimation when using cross-validation for model selection", BMC Bioinformatics
7:91, 2006).

Settings come from the tree-structured Parzen estimator (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011) and are given up early by asynchronous successive
halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), whose
resource is the number of folds judged: after 1, 2, 4, ... folds the better half goes on.

``search_space`` says what may be proposed, ``study`` what a study is and holds, ``judge`` scores
one setting, ``trials`` brings studies to their number of trials, ``tuning`` makes the answer.
"""

from bsdkit.experiments.tune.search_space import Choices, Range, parse_search
from bsdkit.experiments.tune.tuning import tune

__all__ = ["Choices", "Range", "parse_search", "tune"]
