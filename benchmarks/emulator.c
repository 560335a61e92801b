// The same loops as in emulator.py, on Unicorn's C API: seconds for a number of rounds.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unicorn/unicorn.h>

static int stopping;
static long taken;

static void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value, void *data) {
  taken += value;
  if (stopping) uc_emu_stop(uc);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  const char *what = argv[1];
  long rounds = atol(argv[2]);
  size_t length = strlen(argv[3]) / 2;
  unsigned char code[256];
  for (size_t i = 0; i < length; i++) sscanf(argv[3] + 2 * i, "%2hhx", &code[i]);

  uc_engine *uc;
  uc_hook hook;
  if (uc_open(UC_ARCH_X86, UC_MODE_16, &uc)) return 1;
  uc_mem_map(uc, 0, 0x10000, UC_PROT_ALL);
  uc_mem_write(uc, 0x1000, code, length);
  uc_ctl_exits_enable(uc);
  uint32_t count = rounds;
  uc_reg_write(uc, UC_X86_REG_ECX, &count);
  if (strcmp(what, "free"))
    uc_hook_add(uc, &hook, UC_HOOK_INSN, on_out, NULL, 1, 0, UC_X86_INS_OUT);
  stopping = !strcmp(what, "stop");

  uint64_t at = 0x1000;
  double began = now();
  do {
    if (uc_emu_start(uc, at, 0, 0, 0)) return 2;
    uint32_t ip;
    uc_reg_read(uc, UC_X86_REG_EIP, &ip);
    at = ip;
    rounds--;
  } while (stopping && rounds);
  printf("%.9f\n", now() - began);
  return 0;
}
