"""Field numbers and defaults of the forks, and that the generated code belongs to caffe.proto."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from prototxt import _generate, caffe_pb2

# message -> "field=number" or "field=number:default"; what each fork's own caffe.proto says.
FIELDS = {
    # caffe-fast-rcnn and caffe-rfcn
    "LayerParameter": """name=1 type=2 bottom=3 top=4 loss_weight=5 param=6 blobs=7 include=8 exclude=9 phase=10
        propagate_down=11 transform_param=100 loss_param=101 convolution_param=106 dropout_param=108 data_param=107
        inner_product_param=117 lrn_param=118 pooling_param=121 python_param=130 prelu_param=131 spp_param=132
        reshape_param=133 batch_norm_param=139 elu_param=140 bias_param=141 scale_param=142 input_param=143
        crop_param=144 parameter_param=145 recurrent_param=146 swish_param=147 clip_param=148
        roi_pooling_param=8266711 smooth_l1_loss_param=8266712 box_annotator_ohem_param=10000 psroi_pooling_param=10001
        annotated_data_param=200 multibox_loss_param=201 permute_param=202 prior_box_param=203
        detection_output_param=204 detection_evaluate_param=205 norm_param=206 video_data_param=207""",
    "BoxAnnotatorOHEMParameter": "roi_per_img=1 ignore_label=2:-1",
    "PSROIPoolingParameter": "spatial_scale=1 output_dim=2 group_size=3",
    "ROIPoolingParameter": "pooled_h=1:0 pooled_w=2:0 spatial_scale=3:1",
    "SmoothL1LossParameter": "sigma=1:1",
    "LossParameter": "ignore_label=1 normalize=2 normalization=3:1 pre_fixed_normalizer=4:1",
    "DropoutParameter": "dropout_ratio=1:0.5 scale_train=2:1",
    # SSD
    "TransformationParameter": """scale=1:1 mirror=2:0 crop_size=3:0 mean_file=4 mean_value=5 force_color=6 force_gray=7
        resize_param=8 noise_param=9 emit_constraint=10 crop_h=11:0 crop_w=12:0 distort_param=13 expand_param=14""",
    "PriorBoxParameter": """min_size=1 max_size=2 aspect_ratio=3 flip=4:1 clip=5:0 variance=6 img_size=7 img_h=8 img_w=9
        step=10 step_h=11 step_w=12 offset=13:0.5""",
    "MultiBoxLossParameter": """loc_loss_type=1:1 conf_loss_type=2:0 loc_weight=3:1 num_classes=4 share_location=5:1
        match_type=6:1 overlap_threshold=7:0.5 use_prior_for_matching=8:1 background_label_id=9:0 use_difficult_gt=10:1
        do_neg_mining=11 neg_pos_ratio=12:3 neg_overlap=13:0.5 code_type=14:1 encode_variance_in_target=16:0
        map_object_to_agnostic=17:0 ignore_cross_boundary_bbox=18:0 bp_inside=19:0 mining_type=20:1 nms_param=21
        sample_size=22:64 use_prior_for_nms=23:0""",
    "NonMaximumSuppressionParameter": "nms_threshold=1:0.3 top_k=2:0 eta=3:1",
    "DetectionOutputParameter": """num_classes=1 share_location=2:1 background_label_id=3:0 nms_param=4
        save_output_param=5 code_type=6:1 keep_top_k=7:-1 variance_encoded_in_target=8:0 confidence_threshold=9
        visualize=10 visualize_threshold=11 save_file=12""",
    "DetectionEvaluateParameter": """num_classes=1 background_label_id=2:0 overlap_threshold=3:0.5
        evaluate_difficult_gt=4:1 name_size_file=5 resize_param=6""",
    "SaveOutputParameter": """output_directory=1 output_name_prefix=2 output_format=3 label_map_file=4 name_size_file=5
        num_test_image=6 resize_param=7""",
    "NormalizeParameter": "across_spatial=1:1 scale_filler=2 channel_shared=3:1 eps=4:1e-10",
    "PermuteParameter": "order=1",
    "AnnotatedDataParameter": "batch_sampler=1 label_map_file=2 anno_type=3",
    "BatchSampler": "use_original_image=1:1 sampler=2 sample_constraint=3 max_sample=4 max_trials=5:100",
    "Sampler": "min_scale=1:1 max_scale=2:1 min_aspect_ratio=3:1 max_aspect_ratio=4:1",
    "SampleConstraint": """min_jaccard_overlap=1 max_jaccard_overlap=2 min_sample_coverage=3 max_sample_coverage=4
        min_object_coverage=5 max_object_coverage=6""",
    "EmitConstraint": "emit_type=1:0 emit_overlap=2",
    "ResizeParameter": """prob=1:1 resize_mode=2:1 height=3 width=4 pad_mode=5 pad_value=6 interp_mode=7 height_scale=8
        width_scale=9""",
    "DistortionParameter": """brightness_prob=1 brightness_delta=2 contrast_prob=3 contrast_lower=4 contrast_upper=5
        hue_prob=6 hue_delta=7 saturation_prob=8 saturation_lower=9 saturation_upper=10 random_order_prob=11""",
    "ExpansionParameter": "prob=1:1 max_expand_ratio=2:1",
    "NoiseParameter": """prob=1 hist_eq=2 inverse=3 decolorize=4 gauss_blur=5 jpeg=6:-1 posterize=7 erode=8 saltpepper=9
        saltpepper_param=10 clahe=11 convert_to_hsv=12 convert_to_lab=13""",
    "NormalizedBBox": "xmin=1 ymin=2 xmax=3 ymax=4 label=5 difficult=6 score=7 size=8",
    "AnnotatedDatum": "datum=1 type=2 annotation_group=3",
    "AnnotationGroup": "group_label=1 annotation=2",
    "Annotation": "instance_id=1:0 bbox=2",
    # BVLC and NVIDIA
    "BlobProto": """num=1:0 channels=2:0 height=3:0 width=4:0 data=5 diff=6 shape=7 double_data=8 double_diff=9
        raw_data_type=10 raw_diff_type=11 raw_data=12 raw_diff=13""",
    "NetParameter": """name=1 layers=2 input=3 input_dim=4 force_backward=5:0 state=6 debug_info=7:0 input_shape=8
        layer=100""",
    "SolverState": "iter=1 learned_net=2 history=3 current_step=4:0 minimum_loss=5:1e38 iter_last_event=6:0",
    "FillerParameter": """type=1:constant value=2:0 min=3:0 max=4:1 mean=5:0 std=6:1 sparse=7:-1 variance_norm=8:0""",
    "PoolingParameter": """pool=1:0 kernel_size=2 stride=3:1 pad=4:0 kernel_h=5 kernel_w=6 stride_h=7 stride_w=8 pad_h=9
        pad_w=10 engine=11 global_pooling=12 round_mode=13:0""",
    "ConvolutionParameter": """num_output=1 bias_term=2:1 pad=3 kernel_size=4 group=5:1 stride=6 weight_filler=7
        bias_filler=8 pad_h=9 pad_w=10 kernel_h=11 kernel_w=12 stride_h=13 stride_w=14 engine=15 axis=16:1
        force_nd_im2col=17:0 dilation=18""",
}  # fmt: skip

ENUMS = {
    ("LossParameter", "NormalizationMode"): "FULL=0 VALID=1 BATCH_SIZE=2 NONE=3",
    ("PriorBoxParameter", "CodeType"): "CORNER=1 CENTER_SIZE=2 CORNER_SIZE=3",
    ("MultiBoxLossParameter", "LocLossType"): "L2=0 SMOOTH_L1=1",
    ("MultiBoxLossParameter", "ConfLossType"): "SOFTMAX=0 LOGISTIC=1",
    ("MultiBoxLossParameter", "MatchType"): "BIPARTITE=0 PER_PREDICTION=1",
    ("MultiBoxLossParameter", "MiningType"): "NONE=0 MAX_NEGATIVE=1 HARD_EXAMPLE=2",
    ("EmitConstraint", "EmitType"): "CENTER=0 MIN_OVERLAP=1",
    ("ResizeParameter", "Resize_mode"): "WARP=1 FIT_SMALL_SIZE=2 FIT_LARGE_SIZE_AND_PAD=3",
    ("ResizeParameter", "Interp_mode"): "LINEAR=1 AREA=2 NEAREST=3 CUBIC=4 LANCZOS4=5",
    ("AnnotatedDatum", "AnnotationType"): "BBOX=0",
    ("SolverParameter", "SolverType"): "SGD=0 NESTEROV=1 ADAGRAD=2 RMSPROP=3 ADADELTA=4 ADAM=5",
}


@pytest.mark.parametrize("message", FIELDS)
def test_field_numbers_and_defaults(message):
    fields = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name
    for item in FIELDS[message].split():
        name, _, number = item.partition("=")
        number, _, default = number.partition(":")
        assert fields[name].number == int(number), name
        if default:
            actual = fields[name].default_value
            assert actual == (default if isinstance(actual, str) else pytest.approx(float(default))), name


@pytest.mark.parametrize(("message", "enum"), ENUMS)
def test_enum_numbers(message, enum):
    values = caffe_pb2.DESCRIPTOR.message_types_by_name[message].enum_types_by_name[enum].values_by_name
    for item in ENUMS[message, enum].split():
        name, _, number = item.partition("=")
        assert values[name].number == int(number)


def test_solver_fields():
    fields = caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name
    for name in ("eval_type", "ap_version", "show_per_class_result", "plateau_winsize"):
        assert name in fields
    assert caffe_pb2.SolverParameter().ap_version == "Integral"


def test_focal_loss_names():
    assert {"alpha", "gamma", "gama", "beta", "type"} <= set(caffe_pb2.FocalLossParameter.DESCRIPTOR.fields_by_name)


def test_another_caffe_schema_may_be_loaded_too():
    other = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    other.message_type.add(name="LayerParameter").field.add(name="name", number=1, type=9, label=1)
    descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
    assert descriptor_pool.Default().FindMessageTypeByName("caffe.LayerParameter")


def test_generated_code_is_current():
    assert _generate.GENERATED.read_text().startswith(_generate.stamp()), "caffe.proto changed: run `make proto`"


def test_generated_code_is_what_protoc_makes():
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    assert _generate.GENERATED.read_text() == _generate.generate()
