"""The list of conversations in the sidebar. conversations.js fills it from what the browser keeps."""


def conversation_list() -> str:
    """HTML of the list, empty, with its search and the sentence that says where conversations are kept."""
    return (
        "<details><summary>Conversations</summary>"
        '<input type="search" placeholder="Search" aria-label="Search your conversations"><ul></ul>'
        '<button type="button" data-conversation="delete-all">Delete all</button>'
        '<label class="import">Open a saved one<input type="file" accept=".zip,application/zip"></label>'
        '<p class="note" role="status">Kept in this browser only, at most 200 MB; the oldest go first.</p></details>'
    )
