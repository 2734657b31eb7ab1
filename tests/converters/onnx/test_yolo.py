import pytest

SIZES = "biases: 1.3 biases: 1.7 biases: 3.2 biases: 4.0"
PIXELS = " ".join(f"biases: {value}" for value in (10, 13, 16, 30, 33, 23, 30, 61))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("threshold", [0.2, 2])
def test_v2(check_layer, heads, threshold):
    """With a threshold of 2 nothing is found: a row of -1 for each image."""
    settings = f"num_classes: 3 num_box: 2 confidence_threshold: {threshold} nms_threshold: 0.4 {SIZES}"
    shapes = [(2, 16, 5, 5), (2, 16, 3, 3)][:heads]
    check_layer("YoloDetectionOutput", f"yolo_detection_output_param {{ {settings} }}", *shapes)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("threshold", [0.2, 2])
def test_v3(check_layer, gaussian, threshold):
    settings = (
        f"num_classes: 3 num_box: 2 confidence_threshold: {threshold} nms_threshold: 0.4 {PIXELS} mask_group_num: 2 "
        "mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16 "
        f"{'gaussian_box: true' if gaussian else ''}"
    )
    channels = 2 * (12 if gaussian else 8)
    shapes = (1, channels, 3, 5), (1, channels, 6, 4)
    check_layer("Yolov3DetectionOutput", f"yolov3_detection_output_param {{ {settings} }}", *shapes)
