/* A CUDA driver without a GPU: device memory is the host's, and every mistake with it is counted.
 *
 * It is stricter than a real one. Nothing in a stream happens before the stream is synchronised, so that whoever reads
 * a result too early, or lets go of memory too early, reads rubbish. Device addresses are no host addresses, have more
 * than 32 bits, and lead to memory that is full of NaN until something is written there. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE = 100, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { GPUS = 2, MOST = 4096, FIRST_HANDLE = 10 };

typedef struct { uint64_t at; size_t size; char *host; } Block;
typedef struct { void *to; const void *from; size_t size; void (*run)(void); } Work;

static Block blocks[MOST];
static Work queue[MOST];
static int block_count, queue_count, stream_count, started;
static uint64_t next_address = 0x7f3200000000;
static int contexts[GPUS], retained[GPUS];
static __thread void *current;
static char failing[64];
static int failing_code;

/* What tests read and set. */
int stub_mistakes, stub_calls;
size_t stub_limit = 1 << 30;

static int mistake(const char *what) {
    fprintf(stderr, "libcuda.c: %s\n", what);
    stub_mistakes++;
    return INVALID_VALUE;
}

#define BEGIN                                                                                                          \
    stub_calls++;                                                                                                      \
    if (strcmp(failing, __func__) == 0) { failing[0] = 0; return failing_code; }                                       \
    if (!started) return NOT_INITIALIZED;
#define BEGIN_IN_CONTEXT                                                                                               \
    BEGIN                                                                                                              \
    if (current == NULL) return INVALID_CONTEXT;
#define BEGIN_IN_STREAM                                                                                                \
    BEGIN_IN_CONTEXT                                                                                                   \
    if (stream == NULL || stream_count == 0) { mistake("no stream of this context"); return INVALID_HANDLE; }

void stub_fail(const char *function, int code) { snprintf(failing, sizeof failing, "%s", function); failing_code = code; }
int stub_streams(void) { return stream_count; }
int stub_blocks(void) { int live = 0; for (int i = 0; i < block_count; i++) live += blocks[i].host != NULL; return live; }
int stub_current(void) { return current == NULL ? -1 : (int)((int *)current - contexts); }

/* The host's memory behind a device address, or NULL where not all of it lies in one live allocation. */
void *stub_host(uint64_t address, size_t size) {
    for (int i = 0; i < block_count; i++) {
        Block *b = &blocks[i];
        if (b->host && address >= b->at && address + size <= b->at + b->size) return b->host + (address - b->at);
    }
    mistake("an address outside all allocations");
    return NULL;
}

int cuInit(unsigned flags) { started = 1; BEGIN return flags == 0 ? OK : INVALID_VALUE; }
int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? OK : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? OK : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) { BEGIN *count = GPUS; return OK; }
int cuDeviceGet(int *device, int index) { BEGIN *device = FIRST_HANDLE + index; return index < GPUS ? OK : NO_DEVICE; }
int cuDeviceGetName(char *name, int size, int device) {
    BEGIN snprintf(name, size, device == FIRST_HANDLE ? "NVIDIA T4" : "NVIDIA GeForce RTX 4060"); return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN
    int sm = device == FIRST_HANDLE ? 75 : 89;
    *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : -1;
    return OK;
}
int cuDeviceTotalMem_v2(size_t *size, int device) { BEGIN *size = (size_t)8 << 30; return device < 0 ? NO_DEVICE : OK; }

int cuDevicePrimaryCtxRetain(void **context, int device) {
    BEGIN
    if (retained[device - FIRST_HANDLE]++) mistake("a context that is retained twice and never released");
    *context = &contexts[device - FIRST_HANDLE];
    return OK;
}
int cuCtxSetCurrent(void *context) { BEGIN current = context; return OK; }
int cuStreamCreate(void **stream, unsigned flags) {
    BEGIN_IN_CONTEXT stream_count++; *stream = &stream_count; return flags <= 1 ? OK : INVALID_VALUE;
}
int cuStreamDestroy_v2(void *stream) { BEGIN_IN_STREAM stream_count--; queue_count = 0; return OK; }
int cuStreamSynchronize(void *stream) {
    BEGIN_IN_STREAM
    for (int i = 0; i < queue_count; i++) {
        if (queue[i].run) queue[i].run(); else memcpy(queue[i].to, queue[i].from, queue[i].size);
    }
    queue_count = 0;
    return OK;
}
int stub_enqueue(void *stream, void (*run)(void)) {
    BEGIN_IN_STREAM
    queue[queue_count++] = (Work){.run = run};
    return OK;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    BEGIN_IN_CONTEXT
    if (size == 0) return mistake("an allocation of nothing");
    if (size > stub_limit) return OUT_OF_MEMORY;
    if (block_count == MOST) return OUT_OF_MEMORY;
    char *host = malloc(size);
    memset(host, 0xff, size);
    blocks[block_count++] = (Block){next_address, size, host};
    *address = next_address;
    next_address += (size + 511) / 256 * 256; /* nothing lies right behind */
    return OK;
}
int cuMemFree_v2(uint64_t address) {
    BEGIN_IN_CONTEXT
    for (int i = 0; i < block_count; i++) {
        if (blocks[i].at == address && blocks[i].host) {
            free(blocks[i].host);
            blocks[i].host = NULL;
            return OK;
        }
    }
    return mistake("a free of what is not allocated, or not any more");
}
static int copy(void *to, const void *from, size_t size) {
    if (to == NULL || from == NULL) return INVALID_VALUE;
    if ((char *)to < (const char *)from + size && (const char *)from < (char *)to + size) return mistake("copies overlap");
    if (queue_count == MOST) return OUT_OF_MEMORY;
    queue[queue_count++] = (Work){.to = to, .from = from, .size = size};
    return OK;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    BEGIN_IN_STREAM return copy(stub_host(to, size), from, size);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    BEGIN_IN_STREAM return copy(to, stub_host(from, size), size);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) {
    BEGIN_IN_STREAM return copy(stub_host(to, size), stub_host(from, size), size);
}
