/* Streams raw RGB frames from standard input through a saved plan, one line per frame.
 *
 *     python -m skipconv_jax.native.build --export lib      # libskipconv.so and skipconv.h
 *     cc examples/stream_raw.c -Ilib -Llib -lskipconv -Wl,-rpath,lib -o stream_raw
 *     ffmpeg -i video.mp4 -vf scale=256:256 -f rawvideo -pix_fmt rgb24 - | ./stream_raw net.skc
 *
 * Frames have the width and height of the plan's input, (H, W, 3) or (3, H, W), and are scaled to
 * [0, 1]. A second argument is a file that gets every result as float32, a third the threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "skipconv.h"

static int fail(const char *what) {
  fprintf(stderr, "stream_raw: %s: %s\n", what, skipconv_error());
  return 1;
}

/* Reads a whole frame; 1 if there is one, 0 at the end, -1 if the pipe ends within a frame. */
static int read_frame(unsigned char *bytes, size_t size) {
  const size_t got = fread(bytes, 1, size, stdin);
  return got == size ? 1 : got == 0 ? 0 : -1;
}

/* Bytes (H, W, 3) to floats in the axes of the input. */
static void convert(const unsigned char *bytes, const skipconv_tensor *input, float *frame) {
  const int planar = input->shape[0] == 3;
  const size_t area = input->size / 3;
  for (size_t i = 0; i < area; i++)
    for (size_t c = 0; c < 3; c++) frame[planar ? c * area + i : i * 3 + c] = bytes[i * 3 + c] / 255.0f;
}

/* Share of the blocks of all convolutions that were computed. */
static double share_computed(const skipconv_plan *plan, const skipconv_streams *streams) {
  double fired = 0, blocks = 0;
  for (int32_t m = 0; m < skipconv_num_masks(plan); m++) {
    skipconv_mask mask;
    const float *values = skipconv_fired(streams, 0, m);
    if (skipconv_describe_mask(plan, m, &mask)) return -1;
    for (int32_t k = 0; k < mask.rows * mask.columns; k++) fired += values[k];
    blocks += (double)mask.rows * mask.columns;
  }
  return blocks > 0 ? fired / blocks : 0;
}

static int stream(const skipconv_plan *plan, skipconv_streams *streams, FILE *results) {
  skipconv_tensor input, output;
  if (skipconv_describe_input(plan, 0, &input)) return fail("input");
  if (input.rank != 3 || (input.shape[0] != 3 && input.shape[2] != 3)) {
    fprintf(stderr, "stream_raw: input %s is no RGB frame\n", input.name);
    return 1;
  }
  unsigned char *bytes = malloc(input.size);
  float *frame = malloc(input.size * sizeof(float));
  int status = bytes && frame ? 0 : 1, more = 0;
  for (long t = 0; !status && (more = read_frame(bytes, input.size)) == 1; t++) {
    convert(bytes, &input, frame);
    const float *frames[] = {frame};
    if (skipconv_step(streams, frames)) {
      status = fail("step");
      break;
    }
    printf("frame %ld: %.3f of the blocks computed\n", t, share_computed(plan, streams));
    for (int32_t o = 0; results && o < skipconv_num_outputs(plan); o++) {
      if (skipconv_describe_output(plan, o, &output)) status = fail("output");
      if (fwrite(skipconv_output(streams, o), sizeof(float), output.size, results) != output.size) {
        perror("stream_raw: results");
        status = 1;
      }
    }
  }
  if (more < 0) {
    fprintf(stderr, "stream_raw: the pipe ended within a frame of %zu bytes\n", input.size);
    status = 1;
  }
  free(bytes);
  free(frame);
  return status;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: stream_raw PLAN.skc [RESULTS] [THREADS] < frames\n");
    return 2;
  }
  skipconv_plan *plan = NULL;
  skipconv_streams *streams = NULL;
  if (skipconv_open(argv[1], &plan)) return fail("plan");
  if (skipconv_num_inputs(plan) != 1) {
    fprintf(stderr, "stream_raw: a plan of one input is wanted\n");
    skipconv_close(plan);
    return 1;
  }
  int status = 1;
  FILE *results = argc > 2 ? fopen(argv[2], "wb") : NULL;
  if (argc > 2 && !results)
    perror("stream_raw: results");
  else if (skipconv_streams_create(plan, 1, &streams))
    fail("streams");
  else if (skipconv_set_threads(streams, argc > 3 ? atoi(argv[3]) : 0))
    fail("threads");
  else
    status = stream(plan, streams, results);
  if (results && fclose(results)) status = 1;
  skipconv_streams_free(streams);
  skipconv_close(plan);
  return status;
}
