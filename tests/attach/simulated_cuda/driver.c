// A CUDA driver (libcuda.so.1) whose device memory is host memory: its virtual memory API, and no more.
//
// Allocations are memfds, exports are descriptors of them, mappings are mmaps and access is mprotect. So what NVIDIA's
// bindings pass down, in which order and with which sizes, and what another process gets, is checked where there is no
// device; whether a real driver agrees is for tests/gpu to tell. SIMULATED_CUDA_DEVICES lists a digit for each device, which
// is every byte of its UUID; SIMULATED_CUDA_NO_EXPORT makes devices unable to export.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500 };
enum { LOCATION_DEVICE = 1, HANDLE_POSIX_FD = 1, ALLOCATION_PINNED = 1, PROT_R = 1, PROT_RW = 3 };

static const size_t GRANULARITY = 2 << 20, MOST_BYTES = 64 << 20;

typedef struct { int type, id; } Location;
typedef struct { int type, handle_types; Location location; void *win32; unsigned char flags[8]; } Properties;
typedef struct { Location location; int flags; } Access;

static const char *devices(void) {
  const char *listed = getenv("SIMULATED_CUDA_DEVICES");
  return listed ? listed : "";
}

static int is_device(int ordinal) { return ordinal >= 0 && ordinal < (int)strlen(devices()); }

static int is_mapped_size(size_t size) { return size > 0 && size % GRANULARITY == 0; }

static size_t file_bytes(int descriptor) {
  struct stat status;
  return fstat(descriptor, &status) ? 0 : (size_t)status.st_size;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = (int)strlen(devices()), SUCCESS; }

int cuDeviceGet(int *device, int ordinal) { return is_device(ordinal) ? (*device = ordinal, SUCCESS) : INVALID_DEVICE; }

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  if (!is_device(device)) return INVALID_DEVICE;
  memset(uuid, devices()[device] - '0', 16);
  return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)attribute;
  return is_device(device) ? (*value = !getenv("SIMULATED_CUDA_NO_EXPORT"), SUCCESS) : INVALID_DEVICE;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  return is_device(device) ? (*context = (void *)(intptr_t)(device + 1), SUCCESS) : INVALID_DEVICE;
}

int cuCtxPushCurrent_v2(void *context) { return context ? SUCCESS : INVALID_VALUE; }
int cuCtxPopCurrent_v2(void **context) { return *context = (void *)1, SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }

static int is_exportable(const Properties *asked) {
  return asked->type == ALLOCATION_PINNED && asked->handle_types == HANDLE_POSIX_FD &&
         asked->location.type == LOCATION_DEVICE && is_device(asked->location.id);
}

int cuMemGetAllocationGranularity(size_t *granularity, const Properties *asked, int option) {
  return option <= 1 && is_exportable(asked) ? (*granularity = GRANULARITY, SUCCESS) : INVALID_VALUE;
}

// A handle is a descriptor, plus one so that it is not zero.
int cuMemCreate(unsigned long long *handle, size_t size, const Properties *asked, unsigned long long flags) {
  if (flags || !is_exportable(asked) || !is_mapped_size(size)) return INVALID_VALUE;
  if (size > MOST_BYTES) return OUT_OF_MEMORY;
  int descriptor = memfd_create("simulated-cuda", 0);
  if (descriptor < 0 || ftruncate(descriptor, size)) return OUT_OF_MEMORY;
  *handle = descriptor + 1;
  return SUCCESS;
}

int cuMemRelease(unsigned long long handle) { return close((int)handle - 1) ? INVALID_VALUE : SUCCESS; }

int cuMemExportToShareableHandle(void *exported, unsigned long long handle, int type, unsigned long long flags) {
  if (flags || type != HANDLE_POSIX_FD) return INVALID_VALUE;
  return (*(int *)exported = dup((int)handle - 1)) < 0 ? INVALID_VALUE : SUCCESS;
}

int cuMemImportFromShareableHandle(unsigned long long *handle, void *exported, int type) {
  int descriptor = (int)(intptr_t)exported;
  if (type != HANDLE_POSIX_FD || !is_mapped_size(file_bytes(descriptor))) return INVALID_VALUE;
  return *handle = dup(descriptor) + 1, SUCCESS;
}

static int placed(void *address, size_t size, int flags, int descriptor) {
  return mmap(address, size, PROT_NONE, flags | MAP_FIXED, descriptor, 0) == MAP_FAILED ? INVALID_VALUE : SUCCESS;
}

int cuMemAddressReserve(void **address, size_t size, size_t alignment, void *wish, unsigned long long flags) {
  if (alignment || wish || flags || !is_mapped_size(size)) return INVALID_VALUE;
  *address = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return *address == MAP_FAILED ? OUT_OF_MEMORY : SUCCESS;
}

int cuMemAddressFree(void *address, size_t size) { return munmap(address, size) ? INVALID_VALUE : SUCCESS; }

int cuMemMap(void *address, size_t size, size_t offset, unsigned long long handle, unsigned long long flags) {
  int descriptor = (int)handle - 1;
  if (offset || flags || file_bytes(descriptor) != size) return INVALID_VALUE;
  return placed(address, size, MAP_SHARED, descriptor);
}

int cuMemSetAccess(void *address, size_t size, const Access *access, size_t count) {
  if (count != 1 || access->location.type != LOCATION_DEVICE || !is_device(access->location.id)) return INVALID_VALUE;
  int protection = access->flags == PROT_RW ? PROT_READ | PROT_WRITE : access->flags == PROT_R ? PROT_READ : PROT_NONE;
  return mprotect(address, size, protection) ? INVALID_VALUE : SUCCESS;
}

int cuMemUnmap(void *address, size_t size) { return placed(address, size, MAP_PRIVATE | MAP_ANONYMOUS, -1); }

int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
  char versioned[128] = "";
  (void)version, (void)flags;
  if (strlen(symbol) + 4 < sizeof versioned) strcat(strcpy(versioned, symbol), "_v2");
  void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
  *function = self ? dlsym(self, versioned) : NULL;
  if (!*function && self) *function = dlsym(self, symbol);
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
