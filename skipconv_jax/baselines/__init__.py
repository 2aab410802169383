"""What the paper compares Skip-Convolutions with.

`cc_image`: gates on still images, a `SkipNet` without memory. `interleaved` and `feature_flow`:
video detectors with key frames. All run in one loop, as a `video_net.VideoNet`:

    net = Interleaved(predict, interval=10)                       # predict(variables, x) -> outputs
    net = feature_flow(model, BlockMatching(), normalize)         # the detector's own variables
    net = feature_flow(model, FlowNet(channels), normalize)       # Flax, trained by `flow_loss`
    net = Skipped(skip(predict, rules), table)

    params, state = net.init(variables, x)
    streamer = make_video_streamer(net, task.predict)
    state, reading = streamer(params, state, frames)              # (T, B, ...); reading.macs (T, B)
    net.dense_macs(variables, x)

The variables of feature flow with a trained flow network are `join_variables(detector, flow)`, one
tree `{'params': {'detector': ..., 'flow': ...}, 'batch_stats': {'detector': ...}}`: `create_state`,
the training loop and its checkpoints take it as they take any network's.

    variables = join_variables(dense_variables, flow_variables)
    state = create_state(variables, {}, optimizer)
    loss_fn = flow_loss(net, task)                                # a `training.step.LossFn`
"""
