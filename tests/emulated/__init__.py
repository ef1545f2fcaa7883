"""What a GPU and NCCL ask of a program, acted out on a CPU: the code under test is the one that runs on a GPU."""
