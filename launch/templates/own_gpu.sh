# Of the machine's GPUs this rank sees its own alone.
number=${LOCAL_RANK:-${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PMI_LOCAL_RANK:?is not set: no launcher}}}}
IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES:-}"
export CUDA_VISIBLE_DEVICES=${visible[number]-$number}
