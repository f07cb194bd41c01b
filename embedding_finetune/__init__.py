"""From a raw BERT to an embedding model, and an honest measure of what that bought.

One module is one stage of the data's way, and each imports only modules above it in this list:

    files           reading and writing without half-written files; the one error type
    hub             one question to the model hub before anything is loaded from it
    experiment      every setting, from a profile and the environment
    pairs           (query, positives) from the hub, from docstrings or from a local file
    split           leak-free train / dev / test split
    negatives       random negatives, and hard ones that a positive-aware filter has passed
    training_files  the files that FlagEmbedding and the evaluation read
    cpu             linear layers and dropout by quicker ways on a CPU
    vector_cache    vectors on disk, found by what they were made of
    embedder        a model turned into vectors
    index           faiss and BM25 behind one ranking
    mining          training files with mined negatives and a teacher's scores
    batches         what a training step draws, and how its texts are laid out
    contrastive     the loss over a batch, and GradCache
    export          a finished model folder that three libraries read alike
    train           the training itself
    launch          torchrun without its traceback
    finetune        what happens before and after it
    debug           the training in one process, for a debugger
    metrics         recall, MRR, nDCG from a run and judgements
    hybrid          BM25 and a model together
    significance    which differences between models are real
    report          tables, plots, comparison
    explore         a page to look at every query under every model
    run             all of it, in order
"""
