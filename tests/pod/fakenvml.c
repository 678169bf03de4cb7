/* A libnvidia-ml.so.1 whose answers come from the text file $FAKE_NVML, read anew at every call:
 *   gpu UUID DOMAIN:BUS:DEVICE TOTAL_MIB USED_MIB ECC    proc UUID PID MIB    gfx UUID PID MIB (MIB -1: not told)
 *   lost UUID     xid UUID CODE     fail FUNCTION RETURN     hang FUNCTION     crash FUNCTION
 * Structures as in nvml.h of driver 580. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { char uuid[96]; unsigned domain, bus, device; unsigned long long total, used; int ecc, lost; } Gpu;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { void *device; unsigned long long kind, data; unsigned gi, ci; } Event;

static char handles[16][96]; /* a handle is the place of a UUID */
static int events_told;

static void *handle_of(const char *uuid) {
    for (int i = 0; i < 16; i++) {
        if (!handles[i][0]) snprintf(handles[i], 96, "%s", uuid);
        if (!strcmp(handles[i], uuid)) return handles[i];
    }
    abort();
}

static int behave(const char *function) {
    FILE *f = fopen(getenv("FAKE_NVML"), "r");
    char line[256], word[16], name[128];
    int code = 0, n;
    if (!f) return 9;
    while (fgets(line, sizeof line, f))
        if ((n = sscanf(line, "%15s %127s %d", word, name, &code)) >= 2 && !strcmp(name, function)) {
            if (!strcmp(word, "hang")) for (;;) pause();
            if (!strcmp(word, "crash")) raise(SIGSEGV);
            if (!strcmp(word, "fail")) { fclose(f); return code; }
        }
    fclose(f);
    return 0;
}

static int gpus(Gpu *out) {
    FILE *f = fopen(getenv("FAKE_NVML"), "r");
    char line[256], uuid[96];
    int n = 0;
    while (f && fgets(line, sizeof line, f)) {
        Gpu *g = &out[n];
        memset(g, 0, sizeof *g);
        if (sscanf(line, "gpu %95s %x:%x:%x %llu %llu %d", g->uuid, &g->domain, &g->bus, &g->device, &g->total, &g->used, &g->ecc) == 7) n++;
        if (sscanf(line, "lost %95s", uuid) == 1)
            for (int i = 0; i < n; i++) if (!strcmp(out[i].uuid, uuid)) out[i].lost = 1;
    }
    if (f) fclose(f);
    return n;
}

static int find(void *handle, Gpu *out) {
    Gpu all[16];
    int n = gpus(all);
    for (int i = 0; i < n; i++)
        if (!strcmp(all[i].uuid, handle)) { *out = all[i]; return out->lost ? 15 : 0; }
    return 15;
}

#define BEHAVE do { int b = behave(__func__); if (b) return b; } while (0)
#define FIND(g) Gpu g; do { int b = find(device, &g); if (b) return b; } while (0)

int nvmlInit_v2(void) { BEHAVE; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { BEHAVE; Gpu all[16]; *n = gpus(all); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    BEHAVE;
    Gpu all[16];
    int n = gpus(all);
    if ((int)i >= n) return 2;
    if (all[i].lost) return 15;
    *out = handle_of(all[i].uuid);
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    BEHAVE;
    Gpu g;
    if (find((void *)uuid, &g)) return 6;
    *out = handle_of(uuid);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) { BEHAVE; snprintf(out, size, "%s", (char *)device); return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, MemoryV2 *m) {
    BEHAVE;
    FIND(g);
    if (m->version != (sizeof *m | 2 << 24)) return 25;
    m->total = g.total << 20; m->used = g.used << 20; m->reserved = 600ull << 20; m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *m) {
    BEHAVE;
    FIND(g);
    m->total = g.total << 20; m->used = (g.used + 600) << 20; m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned error, unsigned counter, unsigned long long *n) {
    BEHAVE;
    FIND(g);
    if (error != 1 || counter != 0) return 2;
    if (g.ecc < 0) return 3;
    *n = g.ecc;
    return 0;
}
int nvmlDeviceGetPciInfo_v3(void *device, Pci *p) {
    BEHAVE;
    FIND(g);
    memset(p, 0, sizeof *p);
    p->domain = g.domain; p->bus = g.bus; p->device = g.device;
    return 0;
}
static int processes(const char *kind, void *device, unsigned *count, Process *out) {
    FILE *f = fopen(getenv("FAKE_NVML"), "r");
    char line[256], word[16], uuid[96];
    unsigned pid, n = 0;
    long long mib;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%15s %95s %u %lld", word, uuid, &pid, &mib) == 4 && !strcmp(word, kind) && !strcmp(uuid, device)) {
            if (n < *count) out[n] = (Process){pid, mib < 0 ? ~0ull : (unsigned long long)mib << 20, ~0u, ~0u};
            n++;
        }
    if (f) fclose(f);
    int small = n > *count;
    *count = n;
    return small ? 7 : 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *out) {
    BEHAVE; FIND(g); return processes("proc", device, count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *out) {
    BEHAVE; FIND(g); return processes("gfx", device, count, out);
}
static int xids(int skip, void **device, unsigned long long *code) {
    FILE *f = fopen(getenv("FAKE_NVML"), "r");
    char line[256], uuid[96];
    int n = 0, found = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "xid %95s %llu", uuid, code) == 2 && n++ == skip) { *device = handle_of(uuid); found = 1; break; }
    if (f) fclose(f);
    return skip < 0 ? n : found;
}
int nvmlEventSetCreate(void **set) { BEHAVE; *set = handles; return 0; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long kinds, void *set) {
    BEHAVE;
    FIND(g);
    void *d; unsigned long long code;
    if (kinds != 8 || set != handles) return 2;
    events_told = xids(-1, &d, &code); /* what was before is not told */
    return 0;
}
int nvmlEventSetWait_v2(void *set, Event *e, unsigned ms) {
    BEHAVE;
    if (set != handles) return 2;
    memset(e, 0, sizeof *e);
    if (!xids(events_told, &e->device, &e->data)) return 10;
    events_told++;
    e->kind = 8;
    return 0;
}
