/* skipconv.h: runs saved plans without Python.
 *
 *     skipconv_plan *plan;
 *     skipconv_streams *streams;
 *     if (skipconv_open("net.skc", &plan) || skipconv_streams_create(plan, 1, &streams))
 *       return fprintf(stderr, "%s\n", skipconv_error()), 1;
 *     while (read_frame(frame)) {
 *       const float *frames[] = {frame};
 *       if (skipconv_step(streams, frames)) return fprintf(stderr, "%s\n", skipconv_error()), 1;
 *       const float *result = skipconv_output(streams, 0);
 *     }
 *     skipconv_streams_free(streams);
 *     skipconv_close(plan);
 *
 * A plan is read-only and may serve many threads; one `skipconv_streams` belongs to one thread at a
 * time. All numbers are float32 in row-major order. Functions that return int give 0, or one of the
 * errors below with a line of text in skipconv_error(). Files carry checksums against damage, not
 * against malice: open files of people you trust.
 */
#ifndef SKIPCONV_H
#define SKIPCONV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKIPCONV_FILE_VERSION 1
#define SKIPCONV_MAX_RANK 8

enum skipconv_status {
  SKIPCONV_OK = 0,
  SKIPCONV_ERROR_FILE = 1,     /* it can't be read */
  SKIPCONV_ERROR_FORMAT = 2,   /* no plan, cut or damaged */
  SKIPCONV_ERROR_VERSION = 3,  /* a newer file, or a program of another engine */
  SKIPCONV_ERROR_ARGUMENT = 4,
  SKIPCONV_ERROR_MEMORY = 5
};

typedef struct skipconv_plan skipconv_plan;
typedef struct skipconv_streams skipconv_streams;

/* A frame in or a result out: (streams, shape[0], ..., shape[rank - 1]). The name lives as long as the
 * plan; `size` is the product of the shape. */
typedef struct skipconv_tensor {
  const char *name;
  int32_t rank;
  int32_t shape[SKIPCONV_MAX_RANK];
  size_t size;
} skipconv_tensor;

/* The blocks of one convolution: (rows, columns), each 1 where it was computed and 0 where not. */
typedef struct skipconv_mask {
  const char *name;
  int32_t rows, columns;
} skipconv_mask;

/* Text of this thread's last error; never null. */
const char *skipconv_error(void);

/* Instruction set in use: "avx512", "avx2", "neon" or "portable". */
const char *skipconv_instruction_set(void);

int skipconv_open(const char *path, skipconv_plan **plan);
int skipconv_open_memory(const void *data, size_t bytes, skipconv_plan **plan); /* copies what it needs */
void skipconv_close(skipconv_plan *plan); /* after the plan's streams */

int32_t skipconv_num_inputs(const skipconv_plan *plan);
int32_t skipconv_num_outputs(const skipconv_plan *plan);
int32_t skipconv_num_masks(const skipconv_plan *plan);
int skipconv_describe_input(const skipconv_plan *plan, int32_t index, skipconv_tensor *tensor);
int skipconv_describe_output(const skipconv_plan *plan, int32_t index, skipconv_tensor *tensor);
int skipconv_describe_mask(const skipconv_plan *plan, int32_t index, skipconv_mask *mask);
const char *skipconv_metadata(const skipconv_plan *plan); /* JSON */
size_t skipconv_state_bytes(const skipconv_plan *plan);   /* of one stream */

/* `count` fresh streams: their next frame computes everything. */
int skipconv_streams_create(const skipconv_plan *plan, int32_t count, skipconv_streams **streams);
void skipconv_streams_free(skipconv_streams *streams);
int skipconv_reset(skipconv_streams *streams, int32_t stream); /* -1 for all */
/* Threads of one step; 0 takes SKIPCONV_JAX_NUM_THREADS, or the cores, at most 8. */
int skipconv_set_threads(skipconv_streams *streams, int32_t threads);

/* One frame of every stream; `inputs[i]` holds (count, input i). */
int skipconv_step(skipconv_streams *streams, const float *const *inputs);

/* Results of the last step, (count, output); valid until the next step, written where they changed.
 * Null for a wrong index. */
const float *skipconv_output(const skipconv_streams *streams, int32_t index);
/* Blocks of one stream and convolution, (rows, columns); valid until the next step. */
const float *skipconv_fired(const skipconv_streams *streams, int32_t stream, int32_t mask);

#ifdef __cplusplus
}
#endif
#endif /* SKIPCONV_H */
