/* Makes the CPU claim to be an older one: what CPUID answers is cut down to what MASK_CPU names.

   Loaded by LD_PRELOAD into every program that is run; see other_cpus.py, which compiles it.  The kernel is asked to
   let each CPUID instruction fault (arch_prctl ARCH_SET_CPUID, x86-64 Linux on a CPU with CPUID faulting); the handler
   executes it, clears the bits of what the older CPU lacks, and goes on behind it.

   Only the claims are emulated.  The code runs on the real CPU at its real speed, and an instruction that is used
   without asking still works.  libc chose its own string functions before this is loaded. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* The bits that stay, in the registers of the leaves where these CPUs differ from newer ones: qemu's models. */
struct model {
    const char *name;
    unsigned signature; /* leaf 1 EAX: family, model, stepping */
    unsigned leaf1_ecx_without, leaf7_ebx, leaf7_ecx, extended_ecx_without;
};

#define NO_AVX (BIT(12) | BIT(22) | BIT(26) | BIT(27) | BIT(28) | BIT(29) | BIT(30)) /* FMA MOVBE XSAVE AVX F16C RDRAND */
#define NO_LZCNT BIT(5)
#define OS_EBX (BIT(0) | BIT(1) | BIT(7) | BIT(9) | BIT(10)) /* FSGSBASE TSC_ADJUST SMEP ERMS INVPCID */
#define HASWELL_EBX (OS_EBX | BIT(3) | BIT(4) | BIT(5) | BIT(8) | BIT(11)) /* BMI1 HLE AVX2 BMI2 RTM */
#define SKYLAKE_EBX (HASWELL_EBX | BIT(18) | BIT(19) | BIT(20) | BIT(23) | BIT(24) /* RDSEED ADX SMAP CLFLUSHOPT CLWB */ \
    | BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31)) /* AVX-512 F DQ CD BW VL */
#define OS_ECX (BIT(2) | BIT(3) | BIT(4) | BIT(16)) /* UMIP PKU OSPKE LA57 */
#define VNNI BIT(11)
/* AVX-512 4VNNIW 4FMAPS VP2INTERSECT, AMX BF16, AVX-512 FP16, AMX TILE INT8: none of these models has one */
#define NEWER_EDX (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25))

static const struct model MODELS[] = {
    {"Nehalem", 0x106a3, NO_AVX, BIT(9), 0, NO_LZCNT},
    {"Haswell", 0x306c4, 0, HASWELL_EBX, OS_ECX, 0},
    {"Skylake-Server", 0x50654, 0, SKYLAKE_EBX, OS_ECX, 0},
    {"Cascadelake-Server", 0x50656, 0, SKYLAKE_EBX, OS_ECX | VNNI, 0},
};

static const struct model *model;
static struct sigaction theirs; /* what the program wants to do about SIGSEGV */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void masked_cpuid(unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    unsigned leaf = *a, subleaf = *c;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "+a"(*a), "=b"(*b), "+c"(*c), "=d"(*d));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 1) {
        *a = model->signature;
        *c &= ~model->leaf1_ecx_without;
    }
    if (leaf == 7 && subleaf == 0) {
        *b &= model->leaf7_ebx;
        *c &= model->leaf7_ecx;
        *d &= ~NEWER_EDX;
    }
    if (leaf == 7 && subleaf == 1) /* AVX-VNNI, AVX-512 BF16, AVX-IFMA, AVX-NE-CONVERT, AMX-FP16 ... */
        *a = *b = *c = *d = 0;
    if (leaf == 0x80000001)
        *c &= ~model->extended_ecx_without;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    if (info->si_code == SI_KERNEL && at && at[0] == 0x0f && at[1] == 0xa2) { /* CPUID; other faults are the program's */
        unsigned a = r[REG_RAX], b, c = r[REG_RCX], d;
        masked_cpuid(&a, &b, &c, &d);
        r[REG_RAX] = a;
        r[REG_RBX] = b;
        r[REG_RCX] = c;
        r[REG_RDX] = d;
        r[REG_RIP] += 2;
    } else if (theirs.sa_flags & SA_SIGINFO) {
        theirs.sa_sigaction(number, info, context);
    } else if (theirs.sa_handler != SIG_DFL && theirs.sa_handler != SIG_IGN) {
        theirs.sa_handler(number);
    } else {
        struct sigaction end = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &end, NULL); /* the instruction faults again and ends the program */
    }
}

/* The program's own handler of SIGSEGV (Python's faulthandler sets one) is kept, and called for other faults. */
int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
    if (!real_sigaction)
        real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (number != SIGSEGV || !model)
        return real_sigaction(number, wanted, before);
    if (before)
        *before = theirs;
    if (wanted)
        theirs = *wanted;
    return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction wanted = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
    return sigaction(number, &wanted, &before) ? SIG_ERR : before.sa_handler;
}

/* A fault while SIGSEGV is blocked would end the program. */
static int mask_signals(const char *name, int how, const sigset_t *wanted, sigset_t *before) {
    int (*real)(int, const sigset_t *, sigset_t *) = dlsym(RTLD_NEXT, name);
    sigset_t others;
    if (wanted && how != SIG_UNBLOCK && model) {
        others = *wanted;
        sigdelset(&others, SIGSEGV);
        wanted = &others;
    }
    return real(how, wanted, before);
}

int pthread_sigmask(int how, const sigset_t *wanted, sigset_t *before) {
    return mask_signals("pthread_sigmask", how, wanted, before);
}

int sigprocmask(int how, const sigset_t *wanted, sigset_t *before) {
    return mask_signals("sigprocmask", how, wanted, before);
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("MASK_CPU");
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (!name)
        return;
    for (unsigned i = 0; i < sizeof MODELS / sizeof *MODELS; i++)
        if (!strcmp(name, MODELS[i].name))
            model = &MODELS[i];
    if (!model) {
        fprintf(stderr, "mask_cpuid: MASK_CPU=%s: unknown CPU\n", name);
        _exit(2);
    }
    struct sigaction own = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    real_sigaction(SIGSEGV, &own, &theirs);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "mask_cpuid: CPUID cannot be masked here (needs a CPU and a kernel with CPUID faulting)\n");
        _exit(2);
    }
}
