// A stand-in for CANN's runtime (libascendcl.so): "device" memory is the host's, and each launch, copy and
// synchronization is logged, one line each.  build.py appends the functions that merely succeed.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Error;
enum { OK = 0, NO_DEVICE = 107001, NO_CONTEXT = 107002, NO_MEMORY = 207001 };

// ---- the log: what over_stub.py reads

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *text;
static size_t used, room;

static void note(const char *format, ...) {
    char line[9000];
    va_list args;
    va_start(args, format);
    size_t n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n > sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n';
    pthread_mutex_lock(&lock);
    if (used + n + 1 > room) text = realloc(text, room = 2 * (used + n) + 4096);
    memcpy(text + used, line, n);
    text[used += n] = 0;
    pthread_mutex_unlock(&lock);
}

const char *stub_log(void) { return text ? text : ""; }
void stub_clear(void) { used = 0; if (text) *text = 0; }

// ---- tensors: described in the order of their creation, which ends with the launch

static const char *const DTYPES[] = {"f32", "f16", "i8", "i32", "u8", 0, "i16", "u16", "u32", "i64", "u64", "f64",
    "bool", "str", 0, 0, "c64", "c128", 0, 0, 0, 0, 0, 0, 0, 0, 0, "bf16"};
static __thread char tensors[8192];
static __thread int length;

static void add(const char *format, int64_t value) {
    if (length < (int)sizeof tensors - 64) length += sprintf(tensors + length, format, value);
}

static void add_list(const int64_t *values, uint64_t n, char open, char close) {
    add("%c", open);
    for (uint64_t i = 0; i < n; i++) add(i ? ",%ld" : "%ld", values[i]);
    add("%c", close);
}

void *aclCreateTensor(const int64_t *shape, uint64_t n, int dtype, const int64_t *strides, int64_t offset, int format,
                      const int64_t *storage, uint64_t m, void *data) {
    const char *name = dtype >= 0 && dtype < (int)(sizeof DTYPES / sizeof *DTYPES) ? DTYPES[dtype] : 0;
    for (const char *c = name ? name : "?", *first = c; *c; c++) add(c == first ? " %c" : "%c", *c);
    add_list(shape, n, '[', ']');
    int64_t dense = 1, contiguous = 1;
    for (int i = (int)n - 1; i >= 0; dense *= shape[i--]) contiguous &= shape[i] == 1 || strides[i] == dense;
    if (!contiguous) add_list(strides, n, '(', ')');
    if (offset) add("+%ld", offset);
    return malloc(16);
}

void stub_launch(const char *operator) {
    note("LAUNCH %s%s", operator, tensors);
    *tensors = length = 0;
}

Error aclDestroyTensor(void *p) { free(p); return OK; }
void *aclCreateScalar(void *v, int dtype) { return malloc(16); }
void *aclCreateIntArray(void *v, uint64_t n) { return malloc(16); }
void *aclCreateFloatArray(void *v, uint64_t n) { return malloc(16); }
void *aclCreateBoolArray(void *v, uint64_t n) { return malloc(16); }
void *aclCreateTensorList(void *v, uint64_t n) { return malloc(16); }
void *aclCreateScalarList(void *v, uint64_t n) { return malloc(16); }
Error aclDestroyScalar(void *p) { free(p); return OK; }
Error aclDestroyIntArray(void *p) { free(p); return OK; }
Error aclDestroyBoolArray(void *p) { free(p); return OK; }
Error aclDestroyTensorList(void *p) { free(p); return OK; }

// operators of the old interface: compiled for each shape, and never captured
Error aclopCompileAndExecute(const char *name) { note("ACLOP %s", name); return OK; }
Error aclopCompileAndExecuteV2(const char *name) { note("ACLOP %s", name); return OK; }

// ---- devices

static __thread int current = -1;
static int devices(void) { const char *n = getenv("STUB_NPU_COUNT"); return n ? atoi(n) : 1; }

Error aclrtGetDeviceCount(uint32_t *n) { *n = devices(); return OK; }
Error aclrtSetDevice(int i) { if (i < 0 || i >= devices()) return NO_DEVICE; current = i; return OK; }
Error aclrtGetDevice(int *i) { *i = current; return current < 0 ? NO_CONTEXT : OK; }
Error aclrtResetDevice(int i) { current = -1; return OK; }
Error aclrtGetCurrentContext(void **c) { static int context; *c = &context; return current < 0 ? NO_CONTEXT : OK; }
Error aclrtGetPrimaryCtxState(int i, uint32_t *flags, int *on) { if (flags) *flags = 0; if (on) *on = 1; return OK; }
Error aclrtDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return OK; }
Error aclrtDeviceGetBareTgid(int *pid) { *pid = getpid(); return OK; }
Error aclrtGetDeviceInfo(uint32_t i, int what, int64_t *value) { *value = 20; return OK; }
Error aclGetDeviceCapability(uint32_t i, int what, int64_t *value) { *value = 0; return OK; }
const char *aclrtGetSocName(void) { return "Ascend910B1"; }
const char *aclGetRecentErrMsg(void) { return "stub CANN"; }
Error aclsysGetVersionStr(char *name, char *version) { strcpy(version, "0.0.stub"); return OK; }
Error aclsysGetCANNVersion(int name, char *version) { memset(version, 0, 128); return 1; }
Error aclGetCannAttributeList(const int **list, size_t *n) { static const int none[1]; *list = none; *n = 0; return OK; }
Error aclGetCannAttribute(int a, int *value) { *value = 0; return OK; }
size_t aclGetCompileoptSize(int option) { return 8; }
Error aclGetCompileopt(int option, char *value, size_t n) { strncpy(value, "disable", n); return OK; }

// ---- memory

Error aclrtMalloc(void **p, size_t n, int policy) {
    *p = aligned_alloc(512, (n + 511) / 512 * 512 + 512);
    return *p ? OK : NO_MEMORY;
}
Error aclrtMallocAlign32(void **p, size_t n, int policy) { return aclrtMalloc(p, n, policy); }
Error aclrtMallocHost(void **p, size_t n) { return aclrtMalloc(p, n, 0); }
Error aclrtMallocHostWithCfg(void **p, size_t n, void *config) { return aclrtMalloc(p, n, 0); }
Error aclrtFree(void *p) { free(p); return OK; }
Error aclrtFreeHost(void *p) { free(p); return OK; }
Error aclrtGetMemInfo(int kind, size_t *spare, size_t *total) { *spare = 60UL << 30; *total = 64UL << 30; return OK; }
Error aclrtPointerGetAttributes(const void *p, void *attributes) { memset(attributes, 0, 64); return OK; }

static void copied(const char *how, size_t n, int kind) {
    static const char *const KINDS[] = {"h2h", "h2d", "d2h", "d2d"};
    note("COPY %s %s %zu", kind >= 0 && kind < 4 ? KINDS[kind] : "?", how, n);
}
Error aclrtMemcpy(void *to, size_t m, const void *from, size_t n, int kind) {
    copied("sync", n, kind); memmove(to, from, n); return OK;
}
Error aclrtMemcpyAsync(void *to, size_t m, const void *from, size_t n, int kind, void *stream) {
    copied("async", n, kind); memmove(to, from, n); return OK;
}
Error aclrtMemcpyAsyncWithCondition(void *to, size_t m, const void *from, size_t n, int kind, void *stream) {
    return aclrtMemcpyAsync(to, m, from, n, kind, stream);
}
Error aclrtMemset(void *p, size_t m, int value, size_t n) { note("MEMSET"); memset(p, value, n); return OK; }
Error aclrtMemsetAsync(void *p, size_t m, int value, size_t n, void *s) { return aclrtMemset(p, m, value, n); }

// ---- streams and events: everything has finished at once

Error aclrtCreateStream(void **s) { *s = malloc(64); return OK; }
Error aclrtCreateStreamWithConfig(void **s, uint32_t priority, uint32_t flags) { return aclrtCreateStream(s); }
Error aclrtStreamQuery(void *s, int *status) { *status = 0; return OK; }
Error aclrtStreamGetId(void *s, int *id) { *id = 1; return OK; }
Error aclrtGetStreamOverflowSwitch(void *s, uint32_t *flag) { *flag = 0; return OK; }
Error aclrtSynchronizeStream(void *s) { note("SYNC stream"); return OK; }
Error aclrtSynchronizeStreamWithTimeout(void *s, int ms) { note("SYNC stream"); return OK; }
Error aclrtSynchronizeDevice(void) { note("SYNC device"); return OK; }
Error aclrtSynchronizeDeviceWithTimeout(int ms) { note("SYNC device"); return OK; }
Error aclrtSynchronizeEvent(void *e) { note("SYNC event"); return OK; }
Error aclrtCreateEventExWithFlag(void **e, uint32_t flag) { return aclrtCreateStream(e); }
Error aclrtCreateEventWithFlag(void **e, uint32_t flag) { return aclrtCreateStream(e); }
Error aclrtQueryEventStatus(void *e, int *status) { *status = 1; return OK; }
Error aclrtQueryEventWaitStatus(void *e, int *status) { *status = 1; return OK; }
Error aclrtEventElapsedTime(float *ms, void *a, void *b) { *ms = 0; return OK; }
Error aclrtLaunchCallback(void (*call)(void *), void *data, int block, void *s) { call(data); return OK; }
Error aclrtLaunchHostFunc(void *s, void (*call)(void *), void *data) { call(data); return OK; }

// ---- graphs: a number, whose operators over_stub.py repeats when it is replayed

static int graphs, capturing;
static void (*replay)(int);

int stub_capturing(void) { return capturing; }
void stub_on_replay(void (*call)(int)) { replay = call; }

Error aclmdlRICaptureBegin(void *stream, int mode) {
    const char *refused = getenv("STUB_NO_CAPTURE");  // "begin" or "end"
    if (refused && !strcmp(refused, "begin")) return 107030;
    capturing = ++graphs;
    note("CAPTURE %d", mode);
    return OK;
}
Error aclmdlRICaptureEnd(void *stream, void **graph) {
    const char *refused = getenv("STUB_NO_CAPTURE");
    *graph = (void *)(intptr_t)capturing;
    capturing = 0;
    return refused && !strcmp(refused, "end") ? 107032 : OK;
}
Error aclmdlRICaptureGetInfo(void *stream, int *status, void **graph) {
    if (status) *status = capturing != 0;
    if (graph) *graph = (void *)(intptr_t)capturing;
    return OK;
}
Error aclmdlRIExecuteAsync(void *graph, void *stream) {
    note("REPLAY");
    if (replay) replay((int)(intptr_t)graph);
    return OK;
}
