"""The paper's tables and figures on the synthetic pose task, one command each.

    python -m paper.table1      HRNet, S-SVD, W-SVD, L0, CC-image, Skip-Conv, and Figure 5
    python -m paper.table3      block sizes
    python -m paper.table4      clip lengths in training and test
    python -m paper.table5      TSN
    python -m paper.figure8     firing per stage for four betas
    python -m paper.figure12    residuals, and masks from shallow to deep, as pictures
    python -m paper.figure36    masks, and predictions with their cost, as pictures
    python -m paper.combined    one compressed network that skips as well
    python -m paper.all         all of them

Each trains what it needs into `--workdir` (shared: one dense network, one gated run per setting),
continues where it was stopped, and writes a table, its JSON and its plot to `--out`. `--quick` runs
the same code on a toy network within seconds; its figures mean nothing.
"""
