#include "textflag.h"

#define SYS_clone3 435

// func rawClone3(args *cloneArgs, size uintptr) (pid, errno uintptr)
TEXT ·rawClone3(SB),NOSPLIT|NOFRAME,$0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	$SYS_clone3, AX
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $-4096
	JHI	failed
	MOVQ	AX, pid+16(FP)
	MOVQ	$0, errno+24(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	AX, errno+24(FP)
	MOVQ	$0, pid+16(FP)
	RET
