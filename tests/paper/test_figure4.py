"""The figure of the detectors, which share nothing with the pose networks."""


def test_writes_table_json_and_picture(folder, check):
    check("figure4", folder)
