/* A libnvidia-ml.so.1 without a GPU, for tests: the real Python binding loads it and meets real error codes.

   What it answers stands in the text file named by FAKE_NVML_STATE, one "key value" a line, read again when it
   changes, so that a test can lose a GPU or reset the driver in the middle of a run:

     init 18               nvmlInit fails with this return code
     gpus 2                how many GPUs there are
     gpu0.error 15         every call about GPU 0 fails with this return code
     gpu0.power 312000     a figure; one that is not in the file is "not supported" (3)
     gpu0.power.error 4    this figure fails with this return code
     gpu0.process.4711 N   a compute process and its bytes (-1: not known)

   Structures and signatures follow NVIDIA's published nvml.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, SMALL = 7, UNKNOWN = 999 };
enum { MAX_LINES = 256, MAX_GPUS = 8 };

static struct { char key[64]; double value; } lines[MAX_LINES];
static int line_count;
static ino_t last_inode;
static struct timespec last_change;
static int initialised;
static int devices[MAX_GPUS];
static struct gpm_sample { double at; } gpm_pool[2 * MAX_GPUS];
static int gpm_used;
static double gpm_clock;

static void reload(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat facts;
    if (!path || stat(path, &facts)) { line_count = 0; return; }
    if (facts.st_ino == last_inode && !memcmp(&facts.st_mtim, &last_change, sizeof last_change)) return;
    FILE *file = fopen(path, "r");
    line_count = 0;
    while (file && line_count < MAX_LINES
           && fscanf(file, "%63s %lf", lines[line_count].key, &lines[line_count].value) == 2) line_count++;
    if (file) fclose(file);
    last_inode = facts.st_ino;
    last_change = facts.st_mtim;
}

static int find(const char *key, double *value) {
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].key, key)) { *value = lines[i].value; return 1; }
    return 0;
}

/* One figure of a GPU, or the error the state file asks for. */
static int ask(void *device, const char *name, double *value) {
    char key[64];
    double error;
    reload();
    if (!initialised) return UNINITIALIZED;
    int index = (int)((int *)device - devices);
    if (index < 0 || index >= MAX_GPUS) return INVALID;
    if (find("init", &error) && error) return (int)error;
    snprintf(key, sizeof key, "gpu%d.error", index);
    if (find(key, &error) && error) return (int)error;
    snprintf(key, sizeof key, "gpu%d.%s.error", index, name);
    if (find(key, &error) && error) return (int)error;
    snprintf(key, sizeof key, "gpu%d.%s", index, name);
    return find(key, value) ? SUCCESS : NOT_SUPPORTED;
}

static int ask_unsigned(void *device, const char *name, unsigned *value) {
    double figure;
    int code = ask(device, name, &figure);
    if (!code) *value = (unsigned)figure;
    return code;
}

int nvmlInit_v2(void) {
    double error;
    reload();
    if (find("init", &error) && error) return (int)error;
    initialised++;
    return SUCCESS;
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake driver"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    if (!initialised) return UNINITIALIZED;
    snprintf(text, length, "580.00.fake");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    double gpus = 0;
    reload();
    if (!initialised) return UNINITIALIZED;
    find("gpus", &gpus);
    *count = (unsigned)gpus;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    double serial;
    if (index >= MAX_GPUS) return INVALID;
    *device = &devices[index];
    int code = ask(*device, "serial", &serial);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    double serial = (int *)device - devices;
    int code = ask(device, "serial", &serial);
    if (code && code != NOT_SUPPORTED) return code;
    snprintf(text, length, "GPU-fake-%d", (int)serial);
    return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    (void)device;
    snprintf(text, length, "NVIDIA Fake 9000");
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    double value;
    int code = ask(device, "capability", &value);
    if (!code) { *major = (int)value / 10; *minor = (int)value % 10; }
    return code;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned rates[2]) {
    rates[1] = 0;
    return ask_unsigned(device, "utilisation", &rates[0]);
}
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    double total, used;
    int code = ask(device, "memory_total", &total);
    if (!code) code = ask(device, "memory_used", &used);
    if (code) return code;
    memory->total = (unsigned long long)total;
    memory->used = (unsigned long long)used;
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { return ask_unsigned(device, "power", milliwatts); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    return ask_unsigned(device, "power_limit", milliwatts);
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    double value;
    int code = ask(device, "energy", &value);
    if (!code) *millijoules = (unsigned long long)value;
    return code;
}
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    return ask_unsigned(device, "temperature", celsius);
}
int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz) {
    return ask_unsigned(device, type == 1 ? "sm_clock" : "memory_clock", mhz);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) {
    double value;
    int code = ask(device, "throttle", &value);
    if (!code) *bits = (unsigned long long)value;
    return code;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *pending = 0;
    return ask_unsigned(device, "mig", current);
}
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes) {
    double ignored;
    char prefix[32];
    int code = ask(device, "processes", &ignored);
    if (code) return code;
    unsigned found = 0, room = *count;
    snprintf(prefix, sizeof prefix, "gpu%d.process.", (int)((int *)device - devices));
    for (int i = 0; i < line_count; i++) {
        if (strncmp(lines[i].key, prefix, strlen(prefix))) continue;
        if (processes && found < room) {
            processes[found].pid = (unsigned)atoi(lines[i].key + strlen(prefix));
            processes[found].bytes = lines[i].value < 0 ? ~0ull : (unsigned long long)lines[i].value;
        }
        found++;
    }
    *count = found;
    return found > room ? SMALL : SUCCESS;
}

/* GPM: a metric is what stands in the state file, once two different samples are compared. */
struct gpm_support { unsigned version, supported; };
int nvmlGpmQueryDeviceSupport(void *device, struct gpm_support *support) {
    return ask_unsigned(device, "gpm", &support->supported);
}
int nvmlGpmSampleAlloc(struct gpm_sample **sample) {
    if (gpm_used >= 2 * MAX_GPUS) return UNKNOWN;
    *sample = &gpm_pool[gpm_used++];
    (*sample)->at = 0;
    return SUCCESS;
}
int nvmlGpmSampleFree(struct gpm_sample *sample) { (void)sample; gpm_used--; return SUCCESS; }
static void *gpm_device;
int nvmlGpmSampleGet(void *device, struct gpm_sample *sample) {
    double ignored;
    int code = ask(device, "gpm", &ignored);
    if (code) return code;
    gpm_device = device;
    sample->at = ++gpm_clock;
    return SUCCESS;
}
struct gpm_metric { unsigned id; int code; double value; const char *names[3]; };
struct gpm_request { unsigned version, count; struct gpm_sample *before, *after; struct gpm_metric metrics[1]; };
int nvmlGpmMetricsGet(struct gpm_request *request) {
    if (request->version != 1 || !(request->before->at > 0 && request->before->at < request->after->at)) return INVALID;
    for (unsigned i = 0; i < request->count; i++) {
        char name[32];
        snprintf(name, sizeof name, "gpm.%u", request->metrics[i].id);
        request->metrics[i].code = ask(gpm_device, name, &request->metrics[i].value);
    }
    return SUCCESS;
}
