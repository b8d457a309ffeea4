// A libcuda.so.1 that reports one H100. It has the functions that Triton's driver.c calls, checks
// and records their arguments by the CUDA driver API's documentation, and computes nothing. Python
// reads the records through stub_*().
#include "cuda.h"
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARAMS 128
#define RECORDS 8192
#define SHARED_OPTIN 232448
#define REGISTERS 65536

typedef struct {  // what a CUfunction points to: facts read from the cubin
  char name[128];
  int regs, stack, static_shared, max_threads, max_dynamic, params;
  int size[MAX_PARAMS];
} Function;

typedef struct {
  char name[128];
  unsigned grid[3], block[3], shared;
  int regs, stack, params;
  uint64_t stream;
  uint64_t value[MAX_PARAMS];   // of parameters of up to 8 bytes; of a tensor map, its address
  uint64_t layout[MAX_PARAMS];  // of a tensor map: a checksum of all but the address
} Record;

static Record records[RECORDS];
static long launches, encodes, refusals, others;
static char reason[2048];
static int recording = 1;

static CUresult refuse(CUresult code, const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(reason, sizeof reason, format, list);
  va_end(list);
  refusals++;
  return code;
}
#define INVALID(...) return refuse(CUDA_ERROR_INVALID_VALUE, __VA_ARGS__)

// ---- what Python reads ----
long stub_launches(void) { return launches; }
long stub_encodes(void) { return encodes; }
long stub_refusals(void) { return refusals; }
long stub_others(void) { return others; }  // calls that are not allowed in a captured graph, or slow
const char *stub_reason(void) { return reason; }
Record *stub_record(long i) { return &records[i % RECORDS]; }
void stub_recording(int on) { recording = on; }

// ---- device and context ----
static int context;
CUresult cuInit(unsigned flags) { return others++, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return others++, *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  return others++, *device = ordinal, CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *c) { return *c = (CUcontext)&context, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return others++, *device = 0, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return others++, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return cuCtxGetCurrent(c); }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  return others++, *value = 1 << 20, CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return others++, CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  return others++, *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument (stub)" : "error (stub)";
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  others++;
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = SHARED_OPTIN; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = REGISTERS; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
  default: INVALID("device attribute %d", attribute);
  }
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  others++;
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data,
                                CUdeviceptr pointer) {
  INVALID("cuPointerGetAttributes is not stubbed");
}

// ---- modules: registers, parameters and limits as the cubin states them ----
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  others++;
  *module = (CUmodule)image;  // Triton keeps the bytes alive and asks for its function next
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return others++, CUDA_SUCCESS; }

// Attributes of the cubin: of the kernel itself (`own`), or of all kernels by symbol. The codes are
// those that cuobjdump -elf names.
static void attributes(Function *f, const uint8_t *at, const uint8_t *end, int own,
                       uint32_t symbol) {
  while (at + 4 <= end) {
    int format = at[0], kind = at[1];
    uint16_t half;
    memcpy(&half, at + 2, 2);
    const uint8_t *data = at + 4;
    at = format == 4 ? data + half : data;  // EIFMT_SVAL carries `half` bytes
    uint32_t word[3] = {0};
    if (format == 4) memcpy(word, data, half < 12 ? half : 12);
    if (!own) {
      if (word[0] == symbol && kind == 0x2f) f->regs = word[1];   // EIATTR_REGCOUNT
      if (word[0] == symbol && kind == 0x23) f->stack = word[1];  // EIATTR_MAX_STACK_SIZE
      continue;
    }
    if (kind == 0x17) {  // EIATTR_KPARAM_INFO: index, ordinal | offset << 16, ... size << 18
      int ordinal = word[1] & 0xffff;
      if (ordinal < MAX_PARAMS) {
        f->size[ordinal] = word[2] >> 18;
        if (ordinal + 1 > f->params) f->params = ordinal + 1;
      }
    }
    // EIATTR_MAX_THREADS, EIATTR_REQNTID
    if (kind == 0x05 || kind == 0x10) f->max_threads = word[0] * word[1] * word[2];
  }
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  others++;
  const uint8_t *base = (const uint8_t *)module;
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)base;
  if (memcmp(base, ELFMAG, SELFMAG)) return refuse(CUDA_ERROR_INVALID_IMAGE, "not an ELF");
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(base + head->e_shoff);
  const char *names = (const char *)base + sections[head->e_shstrndx].sh_offset;
  Function *f = calloc(1, sizeof *f);
  snprintf(f->name, sizeof f->name, "%s", name);
  f->max_threads = 1024;
  char text[256], info[256], shared[256];
  snprintf(text, sizeof text, ".text.%s", name);
  snprintf(info, sizeof info, ".nv.info.%s", name);
  snprintf(shared, sizeof shared, ".nv.shared.%s", name);
  int found = 0;
  uint32_t symbol = 0;
  for (int i = 0; i < head->e_shnum; i++)
    if (sections[i].sh_type == SHT_SYMTAB) {
      const Elf64_Sym *symbols = (const Elf64_Sym *)(base + sections[i].sh_offset);
      const char *strings = (const char *)base + sections[sections[i].sh_link].sh_offset;
      for (uint32_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++)
        if (!strcmp(strings + symbols[j].st_name, name)) symbol = j;
    }
  for (int i = 0; i < head->e_shnum; i++) {
    const char *section = names + sections[i].sh_name;
    const uint8_t *start = base + sections[i].sh_offset, *end = start + sections[i].sh_size;
    if (!strcmp(section, text)) {
      found = 1;
      if (!f->regs) f->regs = sections[i].sh_info >> 24;
    }
    if (!strcmp(section, shared)) f->static_shared = sections[i].sh_size;
    if (!strcmp(section, info)) attributes(f, start, end, 1, symbol);
    if (!strcmp(section, ".nv.info")) attributes(f, start, end, 0, symbol);
  }
  if (!found) return refuse(CUDA_ERROR_NOT_FOUND, "no kernel %s in the cubin", name);
  *function = (CUfunction)f;
  return CUDA_SUCCESS;
}

CUfunction stub_function(const char *name, int params, const int *sizes) {  // without a cubin
  Function *f = calloc(1, sizeof *f);
  snprintf(f->name, sizeof f->name, "%s", name);
  f->max_threads = 1024, f->max_dynamic = SHARED_OPTIN, f->params = params;
  memcpy(f->size, sizes, params * sizeof *sizes);
  return (CUfunction)f;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  others++;
  Function *f = (Function *)function;
  switch (attribute) {
  case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = f->regs; break;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = f->stack; break;
  case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = f->static_shared; break;
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = f->max_threads; break;
  default: INVALID("function attribute %d", attribute);
  }
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  others++;
  Function *f = (Function *)function;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (value + f->static_shared > SHARED_OPTIN) INVALID("%s: dynamic shared %d", f->name, value);
    f->max_dynamic = value;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;  // as a driver that is older than the attribute; Triton copes
}
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) {
  return others++, CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) {
  return others++, *n = 132, CUDA_SUCCESS;
}

// ---- launches ----
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **params,
                          void **extra) {
  Function *f = (Function *)function;
  unsigned threads = c->blockDimX * c->blockDimY * c->blockDimZ;
  if (c->gridDimX < 1 || c->gridDimX > 0x7fffffffu || c->gridDimY < 1 || c->gridDimY > 65535 ||
      c->gridDimZ < 1 || c->gridDimZ > 65535)
    INVALID("%s: grid %u %u %u", f->name, c->gridDimX, c->gridDimY, c->gridDimZ);
  if (threads < 1 || threads > 1024 || threads > (unsigned)f->max_threads)
    INVALID("%s: %u threads, at most %d", f->name, threads, f->max_threads);
  if (c->sharedMemBytes + f->static_shared > SHARED_OPTIN)
    INVALID("%s: %u bytes of shared memory", f->name, c->sharedMemBytes);
  if (c->sharedMemBytes > 49152 && c->sharedMemBytes > (unsigned)f->max_dynamic)
    INVALID("%s: %u bytes of shared memory, opted in for %d", f->name, c->sharedMemBytes,
            f->max_dynamic);
  // Registers come in units of 256 a warp, that is 8 a thread.
  if ((f->regs + 7) / 8 * 8 * ((threads + 31) / 32 * 32) > REGISTERS)
    return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "%s: %d registers x %u", f->name, f->regs,
                  threads);
  Record *r = &records[launches++ % RECORDS];
  if (!recording) return CUDA_SUCCESS;
  memset(r, 0, sizeof *r);
  memcpy(r->name, f->name, sizeof r->name);
  r->grid[0] = c->gridDimX, r->grid[1] = c->gridDimY, r->grid[2] = c->gridDimZ;
  r->block[0] = c->blockDimX, r->block[1] = c->blockDimY, r->block[2] = c->blockDimZ;
  r->shared = c->sharedMemBytes, r->regs = f->regs, r->stack = f->stack, r->params = f->params;
  r->stream = (uint64_t)c->hStream;
  for (int i = 0; i < f->params; i++) {
    if (f->size[i] <= 8) memcpy(&r->value[i], params[i], f->size[i]);  // reads as the driver would
    if (f->size[i] == 128) {
      if ((uintptr_t)params[i] % 64) INVALID("%s: tensor map %d not on 64 bytes", f->name, i);
      memcpy(&r->value[i], (char *)params[i] + 32, 8);
      memcpy(&r->layout[i], (char *)params[i] + 40, 8);
    }
  }
  return CUDA_SUCCESS;
}

// ---- tensor maps, by the rules of cuTensorMapEncodeTiled ----
// In the documentation, every stride of the example is a multiple of the one before. Drivers do not
// require that, nor does CUTLASS: FlashAttention 3 passes the smaller stride of heads after that of
// rows.
static int bytes_of(int type) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  return type >= 0 && type < 13 ? bytes[type] : 0;
}
static uint64_t mixed(uint64_t sum, uint64_t value) {  // FNV-1a, by words
  return (sum ^ value) * 0x100000001b3ull;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *dim, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
  encodes++;
  int bytes = bytes_of(type);
  unsigned unit = interleave == CU_TENSOR_MAP_INTERLEAVE_32B ? 32 : 16;
  if ((uintptr_t)map % 64) INVALID("tensor map: not on 64 bytes");
  if (!bytes) INVALID("tensor map: type %d", type);
  if (rank < 1 || rank > 5 || (interleave && rank < 3)) INVALID("tensor map: rank %u", rank);
  if (!address || (uintptr_t)address % unit) INVALID("tensor map: address %p", address);
  uint64_t sum = mixed(mixed(mixed(mixed(rank, type), swizzle), fill), l2);
  for (unsigned i = 0; i < rank; i++) {
    if (dim[i] < 1 || dim[i] > (1ull << 32))
      INVALID("tensor map: dim[%u] = %llu", i, (unsigned long long)dim[i]);
    if (box[i] < 1 || box[i] > 256) INVALID("tensor map: box[%u] = %u", i, box[i]);
    if (steps[i] < 1 || steps[i] > 8) INVALID("tensor map: elementStrides[%u] = %u", i, steps[i]);
    sum = mixed(mixed(mixed(sum, dim[i]), box[i]), steps[i]);
  }
  for (unsigned i = 0; i + 1 < rank; i++) {
    if (strides[i] % unit || strides[i] >= (1ull << 40))
      INVALID("tensor map: stride[%u] = %llu", i, (unsigned long long)strides[i]);
    sum = mixed(sum, strides[i]);
  }
  unsigned inner = box[0] * bytes;
  if (interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && inner % 16)
    INVALID("tensor map: inner box of %u bytes", inner);
  unsigned span = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  if (swizzle > CU_TENSOR_MAP_SWIZZLE_128B) INVALID("tensor map: swizzle %d", swizzle);
  if (span && inner > span)
    INVALID("tensor map: inner box of %u bytes, swizzle span %u", inner, span);
  if (interleave == CU_TENSOR_MAP_INTERLEAVE_32B && swizzle != CU_TENSOR_MAP_SWIZZLE_32B)
    INVALID("tensor map: interleave");
  if (l2 > CU_TENSOR_MAP_L2_PROMOTION_L2_256B) INVALID("tensor map: L2 promotion %d", l2);
  if (fill && type < 6) INVALID("tensor map: NaN fill of integers");
  memset(map, 0, sizeof *map);
  ((uint64_t *)map)[4] = (uint64_t)address;
  ((uint64_t *)map)[5] = sum;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType a, cuuint32_t b, void *c,
                                 const cuuint64_t *d, const cuuint64_t *e, const int *f,
                                 const int *g, cuuint32_t h, cuuint32_t i, const cuuint32_t *j,
                                 CUtensorMapInterleave k, CUtensorMapSwizzle l,
                                 CUtensorMapL2promotion m, CUtensorMapFloatOOBfill n) {
  INVALID("im2col is not stubbed");
}
