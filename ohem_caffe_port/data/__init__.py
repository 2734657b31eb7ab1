"""Images, ground truth and proposals: from the files of a data set to a roidb to train from."""
