"""Pictures: keypoints and fired blocks over frames, charts of cost over time."""
