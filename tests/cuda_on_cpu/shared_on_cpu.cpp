/* Shared memory: every __shared__ array of the program, found by its name in the program's own symbol table,
 * and the dynamic array of the launch. One block runs at a time, so one instance of each is enough; NaN fills
 * them before every block. Under AddressSanitizer the bytes between an array and what follows it are out of
 * bounds as well. */
#include "emulator.h"

#include <algorithm>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <map>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#endif

struct area {
    unsigned char *start;
    size_t bytes;
};

static std::vector<struct area> arrays;
static unsigned char *dynamic_start;
static size_t dynamic_bytes;

/* After the dynamic array: NaN, looked at after each block. AddressSanitizer needs none of it. */
#ifdef CUDA_ON_CPU_ASAN
static const size_t GUARD = 0;
#else
static const size_t GUARD = 128;
#endif

static const char TAG[] = "B11cuda_shared";

#ifdef CUDA_ON_CPU_ASAN
/* From the end of an array to the next symbol lie only bytes of padding. */
static void guard(const std::vector<uintptr_t> &starts)
{
    for (const struct area &a : arrays) {
        uintptr_t end = (uintptr_t)a.start + a.bytes;
        auto next = std::lower_bound(starts.begin(), starts.end(), end);
        if (next != starts.end() && *next > end && *next - end < 64)
            __asan_poison_memory_region((void *)end, *next - end);
    }
}
#else
static void guard(const std::vector<uintptr_t> &) {}
#endif

static void read_symbols(const unsigned char *file, uintptr_t base)
{
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
    const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(file + header->e_shoff);
    std::vector<uintptr_t> starts;
    for (int s = 0; s < header->e_shnum; s++) {
        if (sections[s].sh_type != SHT_SYMTAB) continue;
        const ElfW(Sym) *symbols = (const ElfW(Sym) *)(file + sections[s].sh_offset);
        const char *names = (const char *)file + sections[sections[s].sh_link].sh_offset;
        for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; i++) {
            const ElfW(Sym) &symbol = symbols[i];
            int type = symbol.st_info & 0xf;
            if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx >= SHN_LORESERVE || type == STT_TLS ||
                type == STT_FILE || type == STT_SECTION)
                continue;
            starts.push_back(base + symbol.st_value);
            if (type == STT_OBJECT && strstr(names + symbol.st_name, TAG))
                arrays.push_back({(unsigned char *)(base + symbol.st_value), symbol.st_size});
        }
    }
    if (starts.empty())
        cuda_on_cpu_fail("the program has no symbol table, in which __shared__ arrays are found");
    std::sort(starts.begin(), starts.end());
    guard(starts);
}

static int take_base(struct dl_phdr_info *info, size_t, void *base)
{
    *(uintptr_t *)base = info->dlpi_addr; /* the first is the program itself */
    return 1;
}

static void find_arrays()
{
    static bool found;
    if (found) return;
    found = true;
    uintptr_t base = 0;
    dl_iterate_phdr(take_base, &base);
    struct stat status;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0) cuda_on_cpu_fail("/proc/self/exe cannot be read");
    void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) cuda_on_cpu_fail("/proc/self/exe cannot be mapped");
    read_symbols((const unsigned char *)bytes, base);
    munmap(bytes, (size_t)status.st_size);
}

/* Without the sanitizer's eyes: it also writes the padding between arrays. */
CUDA_ON_CPU_UNCHECKED static void fill(unsigned char *start, size_t bytes)
{
#ifdef __x86_64__
    __asm__ volatile("rep stosb" : "+D"(start), "+c"(bytes) : "a"(0xff) : "memory");
#else
    for (volatile unsigned char *p = start; bytes > 0; bytes--)
        *p++ = 0xff;
#endif
}

void shared_open(size_t bytes)
{
    find_arrays();
    void *memory = NULL;
    if (posix_memalign(&memory, 128, bytes + GUARD + !bytes) != 0)
        cuda_on_cpu_fail("no memory for shared memory");
    dynamic_start = (unsigned char *)memory;
    dynamic_bytes = bytes;
}

void shared_fill()
{
    for (const struct area &a : arrays)
        fill(a.start, a.bytes);
    fill(dynamic_start, dynamic_bytes + GUARD);
}

void shared_check()
{
    const unsigned char *end = dynamic_start + dynamic_bytes;
    for (size_t i = 0; i < GUARD; i++)
        if (end[i] != 0xff)
            cuda_on_cpu_fail("dynamic shared memory of %zu bytes was written to %zu bytes after its end",
                             dynamic_bytes, i);
}

void shared_close()
{
    free(dynamic_start);
    dynamic_start = NULL;
}

unsigned char *cuda_on_cpu_shared()
{
    return dynamic_start;
}

bool shared_holds(const void *address, size_t bytes)
{
    uintptr_t from = (uintptr_t)address, dynamic = (uintptr_t)dynamic_start;
    if (from >= dynamic && from - dynamic + bytes <= dynamic_bytes) return true;
    for (const struct area &a : arrays)
        if (from >= (uintptr_t)a.start && from - (uintptr_t)a.start + bytes <= a.bytes) return true;
    return false;
}

/* -- what a kernel may ask for ----------------------------------------------------------------- */

static std::map<const void *, size_t> &allowances()
{
    static std::map<const void *, size_t> map;
    return map;
}

size_t shared_allowed(const void *function)
{
    auto found = allowances().find(function);
    return found == allowances().end() ? (size_t)SHARED_FREE : std::max(found->second, (size_t)SHARED_FREE);
}

cudaError_t cuda_on_cpu_allow(const void *function, enum cudaFuncAttribute attribute, int value)
{
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        (size_t)value > shared_limit())
        return cudaErrorInvalidValue;
    allowances()[function] = (size_t)value;
    return cudaSuccess;
}

cudaError_t cuda_on_cpu_attributes(struct cudaFuncAttributes *attributes, const void *function)
{
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = MOST_THREADS;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = (int)shared_allowed(function);
    return cudaSuccess;
}

cudaError_t cuda_on_cpu_occupancy(int *blocks, int threads, size_t shared_bytes)
{
    if (threads <= 0 || threads > MOST_THREADS || shared_bytes > shared_limit()) return cudaErrorInvalidValue;
    int by_threads = 2048 / ((threads + LANES - 1) / LANES * LANES);
    int by_shared = (int)((shared_limit() + 1024) / (shared_bytes + 1024));
    *blocks = std::max(1, std::min(std::min(by_threads, by_shared), 32));
    return cudaSuccess;
}
