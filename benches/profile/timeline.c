/* Timeline of a CUDA program, for machines without Nsight Systems.
 *
 *   gcc -O2 -shared -fPIC -I$CUPTI/include -I$CUDA/include timeline.c -o timeline.so -L$CUPTI/lib64 -l:libcupti.so.13 -lpthread
 *   CUDA_INJECTION64_PATH=$PWD/timeline.so TIMELINE=out.tsv dualspeed bench ...
 *   python3 benches/profile/timeline.py out.tsv
 *
 * One line per activity: kind, start and end in ns, thread or stream, bytes, name.
 */
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *out;

static void CUPTIAPI requested(uint8_t **buffer, size_t *size, size_t *records) {
  *size = 8 << 20;
  *buffer = aligned_alloc(8, *size);
  *records = 0;
}

static void line(const char *kind, uint64_t start, uint64_t end, uint32_t place, uint64_t bytes, const char *name) {
  fprintf(out, "%s\t%llu\t%llu\t%u\t%llu\t%s\n", kind, (unsigned long long)start, (unsigned long long)end, place,
          (unsigned long long)bytes, name ? name : "?");
}

static void CUPTIAPI completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
  CUpti_Activity *record = NULL;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      CUpti_ActivityKernel10 *k = (CUpti_ActivityKernel10 *)record;
      line("kernel", k->start, k->end, k->streamId, 0, k->name);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      CUpti_ActivityMemcpy6 *m = (CUpti_ActivityMemcpy6 *)record;
      const char *kinds[] = {"?", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH", "PtoP"};
      const char *sources[] = {"?", "pageable", "pinned", "device", "array", "managed", "device static", "managed static"};
      char name[64];
      int kind = m->copyKind <= 10 ? m->copyKind : 0;
      int from = m->srcKind <= 7 ? m->srcKind : 0, to = m->dstKind <= 7 ? m->dstKind : 0;
      snprintf(name, sizeof name, "copy %s %s>%s", kinds[kind], sources[from], sources[to]);
      line("copy", m->start, m->end, m->streamId, m->bytes, name);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      CUpti_ActivityMemset4 *m = (CUpti_ActivityMemset4 *)record;
      line("memset", m->start, m->end, m->streamId, m->bytes, "memset");
      break;
    }
    case CUPTI_ACTIVITY_KIND_DRIVER: {
      CUpti_ActivityAPI *a = (CUpti_ActivityAPI *)record;
      const char *name = NULL;
      cuptiGetCallbackName(CUPTI_CB_DOMAIN_DRIVER_API, a->cbid, &name);
      line("driver", a->start, a->end, a->threadId, 0, name);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMORY2: {
      CUpti_ActivityMemory4 *m = (CUpti_ActivityMemory4 *)record;
      if (m->memoryKind != CUPTI_ACTIVITY_MEMORY_KIND_DEVICE) break;
      int taken = m->memoryOperationType == CUPTI_ACTIVITY_MEMORY_OPERATION_TYPE_ALLOCATION;
      line("memory", m->timestamp, m->timestamp, m->streamId, m->bytes, taken ? "allocation" : "release");
      break;
    }
    default: break;
    }
  }
  free(buffer);
}

static void finish(void) {
  cuptiActivityFlushAll(1);
  fflush(out);
}

int InitializeInjection(void) {
  const char *path = getenv("TIMELINE");
  out = fopen(path ? path : "timeline.tsv", "w");
  if (!out) return 0;
  cuptiActivityRegisterCallbacks(requested, completed);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_DRIVER);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMORY2);
  atexit(finish);
  return 1;
}
