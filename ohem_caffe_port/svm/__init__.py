"""Offline hard negative mining: a linear SVM for each class on a net's fixed features, as R-CNN trained its detectors
(Girshick et al., CVPR 2014, section 2.3; Felzenszwalb et al., PAMI 2010, section 4) and Fast R-CNN's
``tools/train_svms.py`` does after the fact.

Two steps alternate while the images pass once: with the SVMs fixed, RoIs of background that violate the margin join a
cache; when enough are new, the SVM is trained again on the cache, and what it now finds easy is dropped. OHEM put the
choice of hard examples into every iteration of SGD in place of this alternation.
"""

from .one_class import ClassSvm, Round, SvmSettings, train_svm
from .trainer import SCORES, SvmTrainer

__all__ = ["SCORES", "ClassSvm", "Round", "SvmSettings", "SvmTrainer", "train_svm"]
