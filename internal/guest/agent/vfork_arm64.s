#include "textflag.h"

#define SYS_clone3 435

// func rawClone3(args *cloneArgs, size uintptr) (pid, errno uintptr)
//
// The return address is in R30, which the kernel keeps.
TEXT ·rawClone3(SB),NOSPLIT|NOFRAME,$0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	$SYS_clone3, R8
	SVC
	CMN	$4095, R0
	BCS	failed
	MOVD	R0, pid+16(FP)
	MOVD	ZR, errno+24(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	R0, errno+24(FP)
	MOVD	ZR, pid+16(FP)
	RET
